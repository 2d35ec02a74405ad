"""A gateway of another maker with one lamp: plain paho-mqtt, nothing of onestreet. It conforms to the exchange.

    python foreign_publisher.py HOST PORT

Its outbox is in memory, so that it fits on a few pages. What a real gateway adds: an outbox and the ids of executed
commands on a disk, TLS (`client.tls_set`), a lamp.
"""

import json
import random
import sys
import threading
import time
from collections import deque
from contextlib import suppress
from datetime import UTC, datetime
from uuid import UUID

import paho.mqtt.client as mqtt

EXECUTED_KEPT = 1000  # command ids, so that none is executed twice


def now_ms():
    return time.time_ns() // 1_000_000


def rfc3339(ms):
    text = datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="milliseconds")
    return text.replace("+00:00", "Z")


class Waiting:
    """A message that waits for its receipt."""

    def __init__(self, topic, payload, key):
        self.topic, self.payload, self.key = topic, payload, key
        self.sent_s = None  # when it was sent last; None: not yet
        self.resends = 0
        self.wait_s = 0.0


class Publisher:
    county, site, gateway, lamp = "tw-tpe", "street", "acme-1", "acme-lamp-1"
    interval_s = 1.0
    window = 5000
    outbox_most = 100_000
    backoff_first_s, backoff_last_s, silence_s = 30.0, 600.0, 30.0
    park_after, parked_s = 20, 3600.0
    reconnect_s = 0.5, 30.0

    def __init__(self, host, port):
        self.address = host, port
        self.epoch = now_ms()  # the outbox does not survive a restart, so each start begins anew
        self.seqs = {self.lamp: 0, self.gateway: 0}
        self.last_ms = 0
        self.outbox = deque()  # oldest first
        self.dropped = 0
        self.last_receipt_s = time.monotonic()
        self.level = 70
        self.executed = {}  # command id: its result, noted before it is executed
        self.is_connected = False
        self.stopped = threading.Event()
        self.client = mqtt.Client(
            mqtt.CallbackAPIVersion.VERSION2, client_id=self.gateway, clean_session=False
        )
        self.client.on_connect = self.on_connect
        self.client.on_disconnect = self.on_disconnect
        self.client.on_message = self.on_message

    # ---- who we are

    def topic(self, device, channel):
        domain = "gateway" if device == self.gateway else "streetlight"
        return f"city/v1/{self.county}/{self.site}/{self.gateway}/{domain}/{device}/{channel}"

    def receipts_topic(self):
        return f"city/v1/{self.county}/{self.site}/{self.gateway}/receipts"

    def state(self, device, online=True):
        every_s = self.interval_s
        descriptor = {
            "maker": "Acme",
            "location": {"lat": 25.0375, "lon": 121.5637},
        }
        if device == self.lamp:
            descriptor |= {"model": "Lamp One", "asset_id": "P-0001", "commands": ["set_level"]}
            metrics = ["lit", "level", "power"]
        else:
            metrics = ["outbox_depth", "unreceipted", "x-acme-dropped"]
        descriptor["metrics"] = dict.fromkeys(metrics, every_s)
        state = {
            "v": 1,
            "online": online,
            "interval_s": every_s,
            "epoch": self.epoch,
            "descriptor": descriptor,
        }
        return state | ({"since": rfc3339(self.epoch)} if online else {})

    def will(self):
        return self.topic(self.gateway, "state"), self.state(self.gateway, online=False)

    # ---- what we measure

    def measure(self):
        """Put a sample of each of our devices in the outbox."""
        self.last_ms = max(now_ms(), self.last_ms + 1)
        lamp = [
            {"n": "lit", "vb": self.level > 0},
            {"n": "level", "v": self.level, "u": "/100"},
            {"n": "power", "v": round(0.9 * self.level, 1), "u": "W"},
        ]
        unreceipted = sum(one.sent_s is not None for one in self.outbox)
        own = [
            {"n": "outbox_depth", "v": len(self.outbox)},
            {"n": "unreceipted", "v": unreceipted},
            {"n": "x-acme-dropped", "v": self.dropped},
        ]
        for device, records in ((self.lamp, lamp), (self.gateway, own)):
            seq = self.seqs[device]
            self.seqs[device] += 1
            payload = json.dumps(self.pack(device, seq, self.last_ms, records)).encode()
            self.keep(Waiting(self.topic(device, "readings"), payload, (device, self.epoch, seq)))

    def pack(self, device, seq, time_ms, records):
        head = {"bn": f"{self.county}:{device}:", "bt": time_ms / 1000, "bver": 26}
        return [head | {"n": "epoch", "v": self.epoch}, {"n": "seq", "v": seq}, *records]

    def keep(self, waiting):
        self.outbox.append(waiting)
        while len(self.outbox) > self.outbox_most:  # our drop policy: the oldest, and counted
            self.outbox.popleft()
            self.dropped += 1

    # ---- delivery: until its receipt comes

    def send_due(self):
        """Send what is due: after a back-off of its own; in silence the oldest alone."""
        now_s = time.monotonic()
        sent = [one for one in self.outbox if one.sent_s is not None]
        again = sent[:1] if now_s - self.last_receipt_s >= self.silence_s else sent
        for one in again:
            if now_s - one.sent_s >= one.wait_s:
                one.resends += 1
                self.send(one, now_s)
        fresh = [one for one in self.outbox if one.sent_s is None]
        for one in fresh[: max(0, self.window - len(sent))]:
            self.send(one, now_s)

    def send(self, one, now_s):
        one.sent_s = now_s
        backoff_s = min(self.backoff_last_s, self.backoff_first_s * 2**one.resends)
        if one.resends > self.park_after:
            backoff_s = self.parked_s
        one.wait_s = backoff_s * random.uniform(1.0, 1.2)  # noqa: S311 - jitter, no secret
        self.publish(one.topic, one.payload)

    def publish(self, topic, payload, retain=False):
        self.client.publish(topic, payload, qos=1, retain=retain)

    def take_receipt(self, payload):
        try:
            receipt = json.loads(payload)
            if receipt["v"] != 1:
                return
            ranges = [
                (device, *one[:3])
                for kind in ("stored", "refused")
                for device, found in receipt.get(kind, {}).items()
                for one in found
            ]
            results = {name for name, _status in receipt.get("results", [])}
            named = {
                one.key
                for one in self.outbox
                if one.sent_s is not None  # what was not sent yet is not forgotten
                and (one.key in results or any(is_in(one.key, each) for each in ranges))
            }
        except (ValueError, TypeError, LookupError, AttributeError):
            return  # not a receipt: whatever it was meant for is sent again
        if named:
            self.last_receipt_s = time.monotonic()
            self.outbox = deque(one for one in self.outbox if one.key not in named)

    # ---- commands

    def take_command(self, payload):
        try:
            command = json.loads(payload)
            identity = str(UUID(command["id"]))
            name, level = command["name"], command.get("args", {}).get("level")
            expires = datetime.fromisoformat(command["expires_at"])
            is_expired = expires <= datetime.now(UTC)
        except (ValueError, TypeError, LookupError, AttributeError):
            return  # nobody can read it, and nothing is executed
        if identity in self.executed:
            self.answer(self.executed[identity])  # the same result again
            return
        result = {"v": 1, "id": identity, "at": rfc3339(now_ms())}
        if is_expired:
            result["status"] = "expired"
        elif name != "set_level" or not isinstance(level, int | float):
            result |= {"status": "rejected", "reason": "only set_level with a level"}
        else:
            self.execute(level)
            result |= {"status": "done", "readback": {"level": self.level}}
        self.executed[identity] = result
        while len(self.executed) > EXECUTED_KEPT:
            self.executed.pop(next(iter(self.executed)))
        self.answer(result)

    def execute(self, level):
        self.level = level

    def answer(self, result):
        if not any(one.key == result["id"] for one in self.outbox):
            payload = json.dumps(result).encode()
            self.keep(Waiting(self.topic(self.lamp, "results"), payload, result["id"]))

    # ---- the connection

    def on_connect(self, client, _userdata, _flags, reason, _properties):
        if reason.is_failure:
            return
        client.subscribe([(self.receipts_topic(), 1), (self.topic(self.lamp, "commands"), 1)])
        self.is_connected = True
        self.say_states()

    def say_states(self):
        for device in (self.gateway, self.lamp):
            payload = json.dumps(self.state(device)).encode()
            self.publish(self.topic(device, "state"), payload, retain=True)

    def on_disconnect(self, *_):
        self.is_connected = False

    def on_message(self, _client, _userdata, message):
        if message.topic.endswith("/receipts"):
            self.take_receipt(message.payload)
        else:
            self.take_command(message.payload)

    def connect(self):
        topic, state = self.will()
        self.client.will_set(topic, json.dumps(state), qos=1, retain=True)
        self.client.connect(*self.address, keepalive=30)

    def run(self):
        """Measure, send and receive until stopped; a connection that is gone is made again."""
        due_s, wait_s = time.monotonic(), 0.0
        connect_at_s = due_s
        while not self.stopped.is_set():
            now_s = time.monotonic()
            if now_s >= due_s:
                self.measure()
                due_s += self.interval_s
            if self.is_connected:
                wait_s = 0.0
                self.send_due()
            elif now_s >= connect_at_s and not self.client.is_connected():
                first_s, last_s = self.reconnect_s
                wait_s = min(last_s, max(first_s, 2 * wait_s))
                connect_at_s = now_s + wait_s * random.uniform(0.5, 1.0)  # noqa: S311 - jitter
                with suppress(OSError):
                    self.connect()
            # returns when something came, at the latest after this time; it never waits without a socket
            if self.client.loop(timeout=0.05) != mqtt.MQTT_ERR_SUCCESS:
                self.stopped.wait(0.05)
        self.client.disconnect()


def is_in(key, named):
    device, epoch, first, last = named
    return key[:2] == (device, epoch) and first <= key[2] <= last


if __name__ == "__main__":
    Publisher(sys.argv[1], int(sys.argv[2])).run()
