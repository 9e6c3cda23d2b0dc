"""The flags of the training commands, made of the dataclasses of their arguments; and settings from a file."""

from __future__ import annotations

import argparse
import copy
import difflib
import json
import re
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from transformers.hf_argparser import HfArgumentParser, string_to_bool

from .arguments import RECIPES, FinetuneArguments
from .errors import MissingFileError, UsageError

#: By what turns a flag's text into a value: what `--help` calls it, what an error does, and the types it may have.
_KINDS: dict[Any, tuple[str, str, tuple[type, ...]]] = {
    int: ("INT", "a whole number", (int,)),
    float: ("FLOAT", "a number", (int, float)),
    str: ("TEXT", "a text", (str,)),
    string_to_bool: ("BOOL", "true or false", (bool,)),
}
#: Flags that say the same, as transformers' TrainingArguments and its example scripts call them.
ALIASES = {
    "model": "--model-name-or-path",
    "task": "--task-name",
    "dataset_config_name": "--dataset-config",
    "label_column": "--label-column-name",
    "tokenizer": "--tokenizer-name",
    "max_length": "--max-seq-length",
    "max_train_examples": "--max-train-samples",
    "max_eval_examples": "--max-eval-samples",
    "batch_size": "--per-device-train-batch-size",
    "eval_batch_size": "--per-device-eval-batch-size",
    "checkpoint_steps": "--save-steps",
    "resume": "--resume-from-checkpoint",
}
#: Flags without a value, what they set, and to what.
SWITCHES = {"dtype": {"--bf16": "bfloat16", "--fp16": "float16"}}
_YAML, _JSON = (".yaml", ".yml"), (".json",)


class TrainingParser(HfArgumentParser):
    """A parser of a dataclass's arguments, whose defaults a file may give (`--config`).

    Every flag is shown with dashes and taken with underscores too, and so are its `ALIASES` and `SWITCHES`.

    Args:
        cls: the dataclass.
        options: as argparse takes them.
    """

    def __init__(self, cls: type[Any], **options: Any) -> None:
        self._needed: list[argparse.Action] = []
        #: By every name that a file may use: the flag, and the value that a switch stands for.
        self._settings: dict[str, tuple[argparse.Action, Any]] = {}
        options = {"usage": "%(prog)s [options]", "formatter_class": _Formatter, **options}
        super().__init__(cls, **options)  # type: ignore[arg-type]  # it takes any dataclass
        self.add_argument(
            "--config",
            metavar="FILE",
            help="Settings by the names of these flags, in YAML or JSON, such as the arguments.json of a run. Flags "
            "that are given beside it prevail.",
        )
        del self._settings["config"]
        self._recipes = RECIPES if cls is FinetuneArguments else {}
        if self._recipes:
            self.add_argument(
                "--recipe",
                choices=[*self._recipes],
                help="Defaults of several flags at once: paper, those that are shown here, or best, what was found to "
                f"keep most of dense training's quality: {_as_flags(self._recipes['best'])}.",
            )

    def add_argument(self, *names: str, **options: Any) -> argparse.Action:
        """See `argparse`."""
        # What is required may come from a file, of which argparse knows nothing.
        required = options.pop("required", False)
        if "metavar" not in options and "choices" not in options and options.get("type") in _KINDS:
            options["metavar"] = _KINDS[options["type"]][0]
        others = [ALIASES[_key(names[0])]] if _key(names[0]) in ALIASES else []
        shown = list(dict.fromkeys(map(_with_dashes, [*names, *others])))
        action = super().add_argument(*shown, **options)
        if required:
            self._needed.append(action)
        if hidden := [name for name in map(_with_underscores, shown) if name not in shown]:
            same = options | {"dest": action.dest, "default": argparse.SUPPRESS, "help": argparse.SUPPRESS}
            super().add_argument(*hidden, **same)
        for name in map(_key, shown):
            self._settings.pop(name, None)
            if action.nargs != 0 and action.help != argparse.SUPPRESS:
                self._settings[name] = action, None
        if action.dest in SWITCHES:
            self._add_switches(action)
        return action

    def _add_switches(self, action: argparse.Action) -> None:
        group = self.add_mutually_exclusive_group()
        group._group_actions.append(action)  # which argparse adds to a group only where the group makes it
        for name, value in SWITCHES[action.dest].items():
            about = f"Same as {action.option_strings[0]} {value}."
            group.add_argument(
                name, action="store_const", const=value, dest=action.dest, default=argparse.SUPPRESS, help=about
            )
            self._settings[_key(name)] = action, value

    def parse_known_args(  # type: ignore[override]  # argparse's has overloads for other namespaces
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """See `argparse`; what `--config` names is read.

        Raises:
            UsageError: the file is not there or not as expected.
        """
        found, others = super().parse_known_args(args, copy.copy(namespace))
        recipe = self._recipes.get(getattr(found, "recipe", None) or "", {})
        if found.config is not None or recipe:
            given = {} if found.config is None else self._read(found.config)
            self.set_defaults(**given | recipe)
            found, others = super().parse_known_args(args, namespace)
        if missing := [action.option_strings[0] for action in self._needed if getattr(found, action.dest) is None]:
            self.error(f"the following arguments are required: {', '.join(missing)}")
        return found, others

    def _read(self, file: str) -> dict[str, Any]:
        """The settings of a file, by the names of the dataclass's fields."""
        path = Path(file)
        if path.suffix not in (*_YAML, *_JSON):
            if "config_name" in self._settings:  # which was called --config before there were files of settings
                return {"config_name": file}
            raise UsageError(f"--config {file}: expected a file named .yaml, .yml or .json")
        return self.settings(read_pairs(path, "--config "), str(path))

    def takes_list(self, name: str) -> bool:
        """Whether a setting of this name, if there is one, is a list."""
        return _key(name) in self._settings and self._settings[_key(name)][0].nargs == "+"

    def settings(self, pairs: Sequence[tuple[str, Any]], path: str) -> dict[str, Any]:
        """Settings by the names of the dataclass's fields, with those of a recipe that they name.

        Args:
            pairs: names and values as a file has them.
            path: where they are, for messages.

        Raises:
            UsageError: a name is not known, or given twice, or a value is not of its type.
        """
        settings: dict[str, Any] = {}
        names: dict[str, str] = {}
        for name, value in pairs:
            if _key(name) not in self._settings:
                nearest = difflib.get_close_matches(_key(name), self._settings, n=1, cutoff=0)[0]
                raise UsageError(f"{path}: {name}: no such setting; the nearest name is {nearest}")
            action, switched = self._settings[_key(name)]
            if switched is None:
                expected = _expected(action, value)
            else:
                expected = None if isinstance(value, bool) else "true or false"
            if expected is not None:
                raise UsageError(f"{path}: {name}: expected {expected}, found {json.dumps(value, default=str)}")
            if switched is not None:
                if not value:
                    continue
                value = switched
            if action.dest in names:
                same = f", as {names[action.dest]} too" if names[action.dest] != name else ""
                raise UsageError(f"{path}: {name}: given twice{same}")
            names[action.dest] = name
            settings[action.dest] = value
        return self._recipes.get(settings.pop("recipe", ""), {}) | settings


class _Formatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows those defaults that say something, and flags on one line."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        silent = action.default is None or action.default is False
        return action.help if silent else super()._get_help_string(action)

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(text, width, break_on_hyphens=False)  # so that flags stay whole


def _as_flags(settings: dict[str, Any]) -> str:
    return " ".join(f"{_with_dashes('--' + name)} {value}" for name, value in settings.items())


def _with_dashes(name: str) -> str:
    return name.replace("_", "-") if name.startswith("--") else name


def _with_underscores(flag: str) -> str:
    return "--" + _key(flag) if flag.startswith("--") else flag


def _key(name: str) -> str:
    return name.removeprefix("--").replace("-", "_")


def _expected(action: argparse.Action, value: Any) -> str | None:
    """What a flag's value has to be; None if this one is."""
    if value is None and action.default is None:
        return None
    if action.nargs != "+":
        return _expected_one(action, value)
    if not isinstance(value, list) or not value:
        return "a list"
    return next((wrong for each in value if (wrong := _expected_one(action, each))), None)


def _expected_one(action: argparse.Action, value: Any) -> str | None:
    if action.choices is not None:
        return None if value in action.choices else "one of " + ", ".join(map(str, action.choices))
    _, what, types = _KINDS[action.type]
    # A truth value is a whole number to Python, and to nobody else.
    return None if isinstance(value, types) and isinstance(value, bool) == (bool in types) else what


def read_pairs(path: Path, flag: str = "") -> list[tuple[str, Any]]:
    """The keys and values of a YAML or JSON file in its order, those that are there twice too.

    Args:
        path: the file.
        flag: what named it, for messages.

    Raises:
        UsageError: there is none, or it does not hold names and values.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        is_json = path.suffix in _JSON
        content = json.loads(text, object_pairs_hook=_Pairs) if is_json else yaml.load(text, _Loader)
    except FileNotFoundError:
        raise MissingFileError(f"{flag}{path}: no such file") from None
    except OSError as error:
        raise UsageError(f"{flag}{path}: {error.strerror}") from None
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1
        raise UsageError(f"{path}: expected YAML, found in line {line}: {error.problem}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        what = path.suffix[1:].upper()
        raise UsageError(f"{path}: expected {what}, found {' '.join(str(error).split())}") from None
    return named(content, str(path))


def named(content: Any, where: str) -> list[tuple[str, Any]]:
    """The names and values of what `read_pairs` has read, or of a value in it.

    Raises:
        UsageError: it is something else.
    """
    if not isinstance(content, _Pairs):
        raise UsageError(f"{where}: expected names and values, found {type(content).__name__}")
    return [(str(name), value) for name, value in content]


class _Pairs(list[tuple[Any, Any]]):
    """A mapping as a file has it."""


class _Loader(yaml.SafeLoader):  # type: ignore[misc]  # PyYAML has no types
    """Reads YAML with the truth values and numbers of YAML 1.2: `off` and `no` are texts, and `2e-5` is a number."""

    # A copy, without those of YAML 1.1.
    yaml_implicit_resolvers = {  # noqa: RUF012  # as PyYAML has it
        first: [(tag, pattern) for tag, pattern in found if not tag.endswith((":bool", ":int", ":float", ":timestamp"))]
        for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


_TAG = "tag:yaml.org,2002:"
_FLOAT = re.compile(r"([-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.inf|\.nan)$")
_Loader.add_implicit_resolver(_TAG + "bool", re.compile("(true|True|TRUE|false|False|FALSE)$"), list("tTfF"))
_Loader.add_implicit_resolver(_TAG + "int", re.compile("[-+]?[0-9]+$"), list("-+0123456789"))
_Loader.add_implicit_resolver(_TAG + "float", _FLOAT, list("-+.0123456789"))
_Loader.add_constructor(_TAG + "int", lambda loader, node: int(node.value))  # 010 is ten
_Loader.add_constructor(_TAG + "map", lambda loader, node: _Pairs(loader.construct_pairs(node, deep=True)))
