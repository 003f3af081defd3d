"""From options to the settings of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from diffinf.cli.app import say_loading
from diffinf.errors import UserError


def given(values: dict[str, Any]) -> dict[str, Any]:
    """Leave out what was not given, at every depth."""
    nested = {k: given(v) if isinstance(v, dict) else v for k, v in values.items()}
    return {k: v for k, v in nested.items() if v is not None and v != {}}


def data_settings(
    *,
    root: Path | None,
    bins: str | None = None,
    group: list[str] | None = None,
    order: str | None = None,
    votes: list[str] | None = None,
    annotator: list[str] | None = None,
    truth: list[str] | None = None,
    **named: Any,
) -> dict[str, Any]:
    """The settings of the stage data that options name; those that were not given are None."""
    values: dict[str, Any] = {**named, "root": root and root.resolve(), "groups": group or None}
    values |= {"votes": votes or None, "annotators": annotator or None}
    values["order"] = None if order is None else [part.strip() for part in order.split(",") if part.strip()]
    return {**values, "truth": truth or None, "bins": None if bins is None else _numbers(bins)}


def _numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",") if text.strip()]
    except ValueError as error:
        raise UserError(f"--bins {text}: expected numbers with commas between, such as 0,13,20,40") from error


def own_classifier(text: str) -> dict[str, str]:
    """Read NAME:FILE.safetensors or a folder into the classifier's settings."""
    folder = Path(text)
    if folder.is_dir():
        from diffinf.files import read_json

        found = read_json(folder / "config.json")
        if not isinstance(found, dict) or not isinstance(found.get("name"), str):
            raise UserError(
                f"--classifier {text}: config.json has no name; expected a folder that diffinf wrote, or "
                "NAME:FILE.safetensors"
            )
        return {"name": found["name"], "checkpoint": str(folder.resolve())}
    name, colon, file = text.partition(":")
    if not colon or not Path(file).is_file():
        raise UserError(
            f"--classifier {text}: expected NAME:FILE.safetensors (NAME as timm calls the model) or a "
            "folder with model.safetensors and config.json, found neither"
        )
    return {"name": name, "checkpoint": str(Path(file).resolve())}


def is_run(path: str) -> bool:
    """Say whether the path is the directory of a run."""
    from diffinf.run import Run

    return Run.exists(Path(path))


def run_settings(
    dataset: str,
    values: dict[str, Any],
    file: Path | None,
    overrides: list[str],
    preset: str | None,
    from_scratch: bool,
    otherwise: str | None = None,
) -> Any:
    """Put together the settings of the run, if `dataset` is one, or of the preset, and what was given.

    A dataset without `preset` takes the preset `otherwise`; None: gpu where there is one, else cpu.
    """
    from diffinf.config import apply_overrides, build, check_preset, make_config, merge
    from diffinf.data.readers.remote import is_url, located
    from diffinf.run import Run

    if from_scratch:
        overrides = [*overrides, "autoencoder.weights=null"]
    if is_run(dataset):
        if file is not None or preset is not None:
            raise UserError(f"{dataset}: a run has its settings; change single ones with --set")
        config = Run.open(Path(dataset)).config
        merged = merge(config.model_dump(mode="json"), values)
        return apply_overrides(build(type(config), merged, "options"), overrides)
    if not is_url(dataset) and not Path(dataset).exists():
        raise UserError(f"{dataset}: no such file or directory; expected a dataset, or a run")
    named = otherwise if preset is None else preset
    if named is not None:
        chosen = check_preset(named, "--preset")
    else:
        say_loading()
        from diffinf.stages.workspace import (
            default_preset,  # asks torch for a GPU: seconds that a mistake need not cost
        )

        chosen = default_preset(values.get("device", "auto"))
    return make_config(
        located(dataset),
        preset_name=chosen,
        file=file,
        values=values,
        overrides=overrides,
    )


def changed_settings(run: Path, config: Any) -> list[str]:
    """Say which settings differ from those in the config.yaml of the run at `run`: NAME: OLD -> NEW.

    What another preset brings with it is counted in the preset's line.
    """
    from diffinf.config import make_config
    from diffinf.run import Run

    if not Run.exists(run):
        return []
    before = Run.open(run).config
    old, new = (_flat(each.model_dump(mode="json")) for each in (before, config))
    # What may differ: the dataset is checked by its content, a device or the cache changes no result.
    same = ("dataset", "device", "data.cache", "data.cache_gb")
    names = [name for name in new if name not in same and old.get(name) != new[name]]
    if before.preset == config.preset:
        return [f"{name}: {old.get(name)} -> {new[name]}" for name in names]
    own, others = (
        _flat(make_config("", preset_name=each.preset).model_dump(mode="json")) for each in (before, config)
    )
    brought = {name for name in names if (old.get(name), new[name]) == (own[name], others[name])} - {"preset"}
    first = f"preset: {before.preset} -> {config.preset}, and {len(brought)} settings that come with it"
    rest = [name for name in names if name != "preset" and name not in brought]
    return [first, *(f"{name}: {old.get(name)} -> {new[name]}" for name in rest)]


def changes_in_words(run: Path, changes: list[str], command: str) -> str:
    """Tell what `changed_settings` found, what `command` makes of it, and what to do where that was not meant."""
    return (
        f"{run}: this command changes settings of the run (old -> new):\n  "
        + "\n  ".join(changes)
        + "\nStages that depend on them run again when the command comes to them, and their old results go.\n"
        "To undo it, give the old values again (--preset, --set). To keep both, give the new ones a directory of their "
        f"own: diffinf run ... --out DIRECTORY.\nThe run alone, without settings, changes none: diffinf {command} {run}"
    )


def _flat(values: dict[str, Any]) -> dict[str, Any]:
    """Name nested settings as stage.field."""
    return {
        f"{stage}.{name}" if name else stage: value
        for stage, fields in values.items()
        for name, value in (fields.items() if isinstance(fields, dict) else [("", fields)])
    }
