"""What an installer reads: in English and in Chinese, and every line of the log in the table that says what to do."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import device_drivers.errors
import edge_agent.buses
from exchange.errors import DeviceError

ROOT = Path(__file__).parents[2]
INSTALLERS = ROOT / "docs" / "installers"
LEVELS = {"info", "warning", "error", "exception"}
CHINESE = re.compile("[\u4e00-\u9fff]")
WORDS = re.compile(r"[A-Za-z]{3}")
ROW = re.compile(r"^\| `(.+?)` \| (.+?) \| (.+?) \|$", re.MULTILINE)


def sources() -> list[Path]:
    """What runs on a gateway and logs."""
    rooms = [*(ROOT / "edge_agent").rglob("*.py"), *(ROOT / "device_drivers").rglob("*.py")]
    return sorted([*rooms, ROOT / "exchange" / "runtime.py", ROOT / "exchange" / "endpoint.py"])


def literals(node: ast.AST) -> list[str]:
    """The string literals of an expression; those of a formatted string as they stand."""
    return [
        each.value
        for each in ast.walk(node)
        if isinstance(each, ast.Constant) and isinstance(each.value, str)
    ]


def functions(tree: ast.Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    yield from (
        node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    )


def called(tree: ast.AST, name: str) -> Iterator[ast.Call]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] == name:
            yield node


def messages(tree: ast.Module) -> Iterator[str]:
    """Every message that a module logs: a literal, or a name that literals are assigned or given to."""
    for function in functions(tree):
        parameters = [each.arg for each in function.args.args]
        for node in ast.walk(function):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                continue
            if node.func.attr not in LEVELS or ast.unparse(node.func.value) != "log":
                continue
            [message, *_] = node.args
            if not isinstance(message, ast.Name):
                yield from literals(message)
                continue
            for each in ast.walk(function):
                if isinstance(each, ast.Assign) and message.id in map(ast.unparse, each.targets):
                    yield from literals(each.value)
            if message.id in parameters:
                place = parameters.index(message.id) - ("self" in parameters)
                for call in called(tree, function.name):
                    yield from literals(call.args[place])
    for trouble in called(tree, "Trouble"):
        for words in trouble.args[1:]:
            yield from literals(words)


def logged() -> set[str]:
    trees = [ast.parse(path.read_text("utf-8")) for path in sources()]
    return {words for tree in trees for words in messages(tree)}


def kinds(of: type[DeviceError] = DeviceError) -> set[str]:
    """What the log calls `kind` when a device fails."""
    assert device_drivers.errors
    assert edge_agent.buses
    found = {
        one
        for one in of.__subclasses__()
        if one.__module__.startswith(("device_drivers", "edge_agent"))
    }
    return {one.__name__ for one in found}.union(*(kinds(one) for one in found))


def rows(name: str) -> dict[str, tuple[str, str]]:
    text = (INSTALLERS / name).read_text("utf-8")
    found = ROW.findall(text)
    assert len(found) == len({row[0] for row in found}), "a message stands twice"
    return {message: (cause, remedy) for message, cause, remedy in found}


def test_the_table_of_messages_is_what_the_agent_logs() -> None:
    found = logged()
    assert len(found) > 30
    told = set(rows("messages.md"))
    assert found - told == set(), "lines of the log that are not in docs/installers/messages.md"
    assert kinds() - told == set(), "kinds of failure that are not in it"
    assert told - found - kinds() == set(), "what nothing says any more"


def test_both_languages_have_the_same_rows_each_in_its_own() -> None:
    english, chinese = rows("messages.md"), rows("messages.zh-TW.md")
    assert list(english) == list(chinese)
    for message, words in english.items():
        assert not any(map(CHINESE.search, words)), message
    for message, (cause, _) in chinese.items():
        assert CHINESE.search(cause), message


def test_what_the_terminal_says_is_told_as_it_is() -> None:
    told = [
        re.findall(r"^\| \*\*(.+?)\*\* \|", (INSTALLERS / name).read_text("utf-8"), re.MULTILINE)
        for name in ("messages.md", "messages.zh-TW.md")
    ]
    assert told[0] == told[1]
    paths = [*(ROOT / "edge_agent").glob("*_command.py")]
    paths += [ROOT / "edge_agent" / "cli.py", ROOT / "onestreet" / "cli.py"]
    said = "\n".join(
        words for path in paths for words in literals(ast.parse(path.read_text("utf-8")))
    )
    assert [words for words in told[0] if words not in said] == []


@pytest.mark.parametrize("name", ["README", "enrol", "scan", "programmes", "messages"])
def test_every_page_is_there_in_both_languages(name: str) -> None:
    english = (INSTALLERS / f"{name}.md").read_text("utf-8")
    chinese = (INSTALLERS / f"{name}.zh-TW.md").read_text("utf-8")
    assert f"]({name}.zh-TW.md)" in english
    assert f"]({name}.md)" in chinese
    for text in (english, chinese):
        for target in re.findall(r"\]\(([^)#]+)", text):
            assert (INSTALLERS / target).is_file(), target
    headings = [re.findall(r"^(#+) ", text, re.MULTILINE) for text in (english, chinese)]
    assert headings[0] == headings[1]


def test_installers_read_every_error_in_both_languages() -> None:
    """What goes to the terminal as a sentence, and every wrong setting."""
    lacking = []
    for path in (ROOT / "edge_agent").rglob("*.py"):
        tree = ast.parse(path.read_text("utf-8"))
        named = {
            ast.unparse(each.targets[0]): " ".join(literals(each.value))
            for each in tree.body
            if isinstance(each, ast.Assign)
        }
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call) or not node.args:
                continue
            name = ast.unparse(node.func)
            if name in ("sys.stdout.write", "sys.stderr.write") or name.endswith("TypeError"):
                words = " ".join(literals(node.args[0]))
            elif name.rpartition(".")[2] == "ConfigError":
                allowed = node.args[3:4]
                words = " ".join(words for each in allowed for words in literals(each))
                names = {ast.unparse(each) for one in allowed for each in ast.walk(one)}
                words += " ".join(text for name, text in named.items() if name in names)
            else:
                continue
            if WORDS.search(words) and not CHINESE.search(words):
                lacking.append(f"{path.relative_to(ROOT)}:{node.lineno}: {words}")
    assert lacking == []
