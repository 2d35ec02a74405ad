"""The conformance kit: watches one party from outside and says, requirement by requirement, what it saw."""
