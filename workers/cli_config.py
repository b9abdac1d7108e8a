"""The commands about configuration: `camvec check`, `camvec schema`, `camvec keys`."""

import json
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from streaming.config import Config


def register(app: typer.Typer) -> None:
    """Add the commands of this file to `app`."""
    for command in (check, schema, keys):
        app.command()(command)


def check(
    config: Annotated[str, typer.Argument(help="Configuration file, or just the URL of a camera.")],
    *,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the whole configuration that is in effect, secrets masked.")
    ] = False,
    measure: Annotated[
        bool, typer.Option(help="Load the model and measure whether it keeps the budgets on this machine.")
    ] = True,
) -> None:
    """Is this configuration valid, are its files there, does its model keep the budget here, and what is in effect?"""
    from streaming.config import load_config
    from streaming.config.review import missing_sources, require_files, warnings

    loaded = load_config(config)
    require_files(loaded)
    notes = missing_sources(loaded) + warnings(loaded) + (_measure(loaded) if measure else [])
    if as_json:
        print(json.dumps({"ok": True, "warnings": notes, "config": loaded.dump()}, indent=2))
        return
    print(_summary(loaded))
    for note in notes:
        typer.echo(f"warning: {note}", err=True)


def _measure(config: "Config") -> list[str]:
    """What there is to say of the model's speed on this machine. Raises ConfigError if the model cannot be had."""
    from streaming.errors import ConfigError

    if "encode" not in config.roles:
        return []
    try:
        from encoders_core.errors import EncoderError
        from encoders_core.hardware_threads import configure_threads
        from workers.encoding import full_pass_ms, model_of, over_budget
    except ImportError as error:
        return [f"the model was not measured, {error.name} is not installed: pip install 'camvec[edge]'"]
    configure_threads()  # as an encoder process has it
    try:
        encoder = model_of(config)
    except EncoderError as error:
        raise ConfigError(f"model: {error}") from error
    tightest_ms = min((config.cameras[name].budget_ms for name in config.enabled_cameras()), default=None)
    note = over_budget(full_pass_ms(encoder), tightest_ms or config.defaults.budget_ms)
    return [note] if note else []


def _summary(config: "Config") -> str:
    from streaming.redaction import redact

    mqtt, cameras = config.mqtt, config.enabled_cameras()
    broker = "built-in, 127.0.0.1" if mqtt.embedded else mqtt.host
    lines = [
        f"node     {config.node} ({', '.join(config.roles)})",
        f"broker   {broker}:{mqtt.port}{', TLS' if mqtt.tls else ''}, topics below {mqtt.root}/{config.node}",
        f"model    {config.model.name}{', with the temporal head' if config.temporal else ''}",
    ]
    for name in cameras:
        camera = config.cameras[name]
        lines.append(f"camera   {name}: {redact(camera.url)}, {camera.budget_ms:g} ms, priority {camera.priority}")
    off = len(config.cameras) - len(cameras)
    return "\n".join(
        [
            *lines,
            f"valid: {len(cameras)} camera{'' if len(cameras) == 1 else 's'}"
            + (f", {off} switched off" if off else ""),
        ]
    )


def schema(
    *, output: Annotated[Path | None, typer.Option("--output", "-o", help="Write it to this file.")] = None
) -> None:
    """The JSON Schema of the configuration, for editors."""
    from streaming.config import editor_schema

    text = json.dumps(editor_schema(), indent=2)
    if output is None:
        print(text)
    else:
        output.write_text(text + "\n", encoding="utf-8")


def keys(
    folder: Annotated[Path, typer.Argument(help="Where NAME.public and NAME.secret are written.")],
    *,
    name: Annotated[
        str, typer.Option(help="Name of the key in the log of the other host; default: the host name.")
    ] = "",
) -> None:
    """Make the CURVE keys of one host, for frames that travel between hosts."""
    from streaming.curve import make_keys

    public, secret = make_keys(folder, name or socket.gethostname())
    print(f"{secret}: stays on this host, as transport.keys.secret")
    print(f"{public}: goes to the other hosts, as transport.keys.server or into the folder transport.keys.clients")
