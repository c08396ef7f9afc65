"""What a reader meets: every documented command parses, every configuration validates, every link resolves."""

import ast
import importlib
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from resnet_train import __version__, cli
from resnet_train.commands import select_runs
from resnet_train.config import load, recipes, zoo
from resnet_train.errors import BadInput

ROOT = Path(__file__).parent.parent
PAGES = sorted(
    str(path.relative_to(ROOT)) for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), ROOT / "Dockerfile")
)
WITHOUT_COMMANDS = {"CHANGELOG.md", "docs/architecture.md", "docs/scaling.md"}
"""Every other page has at least one command; if none is found there, the search is broken."""
CONFIGS = sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("configs/*.yaml"))
BATCH_FILES = sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("slurm/*.sbatch"))

FENCE = re.compile(r"^ *```(\w*)\n(.*?)^ *```$", re.S | re.M)
"""A block of code with its language."""
MENTION = re.compile(r"resnet-train\s(\w+)")
"""Inline code that names a command and does not call it."""

Words = list[str]


def commands(text: str) -> Iterator[Words]:
    """The arguments of every `resnet-train` command in the code of a document."""
    for line in code(text):
        for words in split(line):
            if words[:1] == ["scripts/quickstart.sh"]:
                yield ["run", "configs/quickstart.yaml", *words[1:]]
            batch_files = [i for i, word in enumerate(words) if re.fullmatch(r"slurm/[\w-]+\.sbatch", word)]
            if "sbatch" in words and batch_files:
                assert (ROOT / words[batch_files[0]]).is_file()
                if arguments := [word for word in words[batch_files[0] + 1 :] if word != "…"]:
                    yield ["run", *arguments]
            programs = [i for i, word in enumerate(words[:-1]) if Path(word).name in ("resnet-train", "resnet_train")]
            if programs and words[:2] != ["docker", "build"]:
                yield [word for word in words[programs[-1] + 1 :] if word != "…"]


def code(text: str) -> Iterator[str]:
    """Lines of shell in a document: fenced blocks, indented blocks, inline code that is a command."""
    blocks = [block for language, block in FENCE.findall(text) if language in ("bash", "sh")]
    rest = FENCE.sub("", text)
    blocks.append("\n".join(line for line in rest.replace("\\\n", "\\").splitlines() if line.startswith("    ")))
    for block in blocks:
        yield from re.sub(r"\\\n?\s*", " ", block).splitlines()
    for inline in re.findall(r"`([^`]+)`", rest):
        program = re.match(r"(resnet-train|torchrun|python -m resnet_train|scripts/quickstart.sh)\s", inline)
        if program and not MENTION.fullmatch(inline):
            yield " ".join(inline.split())


def split(line: str) -> Iterator[Words]:
    """The simple commands of a line of shell, as words."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    words: Words = []
    for word in lexer:
        if set(word) <= set("();<>|&"):
            yield words
            words = []
        else:
            words.append(word)
    yield words


def comments(text: str) -> str:
    """The comment lines of a YAML file, a Dockerfile or a batch file, as a document: commands are indented by two more spaces."""
    lines = [line.removeprefix("#").removeprefix(" ") for line in text.splitlines() if line.startswith("#")]
    return "\n".join(re.sub("^  (?=[^ ])", "    ", line) for line in lines)


def document(name: str) -> str:
    text = (ROOT / name).read_text()
    return text if name.endswith(".md") else comments(text)


def is_placeholder(word: str) -> bool:
    """Whether a word stands for one of the reader's own: CHECKPOINT, FILE.npz, $network."""
    return word.startswith("$") or re.match(r"[A-Z][A-Z_-]*\b", word) is not None


def command_names() -> set[str]:
    return set(cli.COMMANDS)


def check(words: Words) -> None:
    """Parse a command with the program's own parser; check that the files, keys and networks in it exist."""
    args = cli.parse(words)
    if "config" in args and not is_placeholder(str(args.config)):
        experiment = load.load(recipes.find(args.config, ROOT), args.overrides)
        only = [args.only] if isinstance(args.only, str) else args.only or []
        assert select_runs(args.config, experiment, [name for name in only if not is_placeholder(name)])
    elif "overrides" in args and "config" not in args:
        load.override_run(a_run(), args.overrides)
    for name in (*getattr(args, "networks", ()), getattr(args, "network", None), getattr(args, "vs", None)):
        if name is not None and "/" not in name and not is_placeholder(name):
            zoo.network_fields(name)


def a_run() -> load.Run:
    return next(load.runs(load.load(ROOT / "configs/imagenet-resnet.yaml")))


@pytest.mark.parametrize("name", [*PAGES, *CONFIGS, *BATCH_FILES])
def test_commands_are_understood(name: str) -> None:
    found = list(commands(document(name)))
    assert bool(found) == (name not in WITHOUT_COMMANDS)
    for words in found:
        try:
            check(words)
        except (BadInput, SystemExit) as error:
            pytest.fail(f"{name}: resnet-train {shlex.join(words)}: {error}")


@pytest.mark.parametrize("name", sorted(cli.COMMANDS))
def test_examples_in_help_are_understood(name: str) -> None:
    example = importlib.import_module(f"resnet_train.commands.{name}").EXAMPLE.partition("\n\n")[0]
    found = list(commands(f"```bash\n{example}\n```"))
    assert name in [words[0] for words in found]
    for words in found:
        check(words)


def test_recipes_lists_every_experiment() -> None:
    text = (ROOT / "docs/recipes.md").read_text()
    assert [name for name in CONFIGS if f"| `{Path(name).name}` |" not in text] == []


@pytest.mark.parametrize("name", [*PAGES, *CONFIGS])
def test_mentioned_commands_exist(name: str) -> None:
    assert set(re.findall(rf"`{MENTION.pattern}`", FENCE.sub("", document(name)))) <= command_names()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("```bash\nresnet-train schema > x.json  # why\n```", [["schema"]]),
        ("```bash\ntorchrun --nproc-per-node 8 \\\n    -m resnet_train run a.yaml & pid=$!\n```", [["run", "a.yaml"]]),
        ("```bash\nresnet-train run a.yaml && resnet-train compare b\n```", [["run", "a.yaml"], ["compare", "b"]]),
        ("See\n\n    .venv/bin/resnet-train compare \\\n        b\n", [["compare", "b"]]),
        ("Use `resnet-train eval\nFILE.npz …` or `resnet-train eval`.", [["eval", "FILE.npz"]]),
        ("`scripts/quickstart.sh seeds=[0,1]`", [["run", "configs/quickstart.yaml", "seeds=[0,1]"]]),
        ("```yaml\nresnet-train run\n```\nand resnet-train alone", []),
    ],
)
def test_commands_are_found(text: str, expected: list[Words]) -> None:
    assert list(commands(text)) == expected


@pytest.mark.parametrize(
    "command",
    [
        "run configs/none.yaml",
        "run configs/quickstart.yaml train.epoch=1",
        "run configs/quickstart.yaml --only resnet-18",
        "eval FILE --set eval.flp=true",
        "probe gradients cifar-resnet-21 --data digits",
        "compare runs/x --jsn",
    ],
)
def test_a_wrong_command_is_noticed(command: str) -> None:
    with pytest.raises((BadInput, SystemExit, AssertionError)):
        check(shlex.split(command))


@pytest.mark.parametrize("name", [name for name in PAGES if name.endswith(".md")])
def test_experiments_in_the_documents_are_valid(name: str, tmp_path: Path) -> None:
    """Each YAML block, a part of an experiment on top of a whole one."""
    for block in re.findall(r"^```yaml\n(.*?)^```$", (ROOT / name).read_text(), re.S | re.M):
        whole = "networks" in yaml.safe_load(block)
        path = tmp_path / "experiment.yaml"
        path.write_text(block if whole else f"base: {ROOT / 'configs/imagenet-wide.yaml'}\nname: part\n{block}")
        load.load(path)


@pytest.mark.parametrize("name", ["CONTRIBUTING.md"])
def test_diffs_apply_to_the_code(name: str) -> None:
    """Lines that a diff keeps or removes are lines of the file that the comment above them names."""
    kept = 0
    for block in re.findall(r"^```diff\n(.*?)^```$", (ROOT / name).read_text(), re.S | re.M):
        source = ""
        for line in block.splitlines():
            if header := re.match(r"[ +]# ([\w/.-]+\.\w+)", line):
                path = ROOT / header[1]
                source = "" if line.startswith("+") else path.read_text()
            elif not line.startswith("+"):
                kept += 1
                assert f"{line[1:].strip()}\n" in source, f"{name}: {line}"
    assert kept > 0


def test_messages_in_troubleshooting_are_the_program_s() -> None:
    """Each quoted message, `…` for names and numbers, is part of a string in the package."""
    texts = {text for path in ROOT.glob("resnet_train/**/*.py") for text in strings(ast.parse(path.read_text()))}
    quoted = re.findall(r"^\| (`.*?) \| ", (ROOT / "docs/troubleshooting.md").read_text(), re.M)
    messages = [message for cell in quoted for message in re.findall(r"`([^`]+)`", cell) if " " in message]
    assert len(messages) > 40
    known = "\n".join(texts)
    unknown = []
    for message in messages:
        pattern = ".*".join(re.escape(part) for part in message.strip("…").split("…"))
        if not re.search(pattern, known):
            unknown.append(message)
    assert unknown == []


def strings(tree: ast.Module) -> Iterator[str]:
    """Every string constant and f-string of a module, `…` for what is formatted."""
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def test_the_citation_is_of_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == __version__
    assert [reference["year"] for reference in citation["references"]] == [2016, 2016, 2016]


def test_the_readme_is_short_and_names_every_command() -> None:
    text = (ROOT / "README.md").read_text()
    assert len(text.split()) <= 1200
    assert {name for name in command_names() if f"`resnet-train {name}" not in text} == set()


@pytest.mark.parametrize("name", [name for name in PAGES if name.endswith(".md")])
def test_links_resolve(name: str) -> None:
    page = ROOT / name
    links = re.findall(r"\]\(([^)\s]+)\)", page.read_text())
    targets = [link.partition("#")[0] for link in links if "://" not in link]
    assert [target for target in targets if target and not (page.parent / target).exists()] == []


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    """In a process of its own, since mkdocs has warnings of its own. A page outside the navigation is a warning."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    assert (tmp_path / "site" / "index.html").exists()
