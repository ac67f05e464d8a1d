"""`latentdd completion`: a script by which a shell completes verbs, options and names of recipes."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from ldd.disk.shipped import shipped_names
from ldd.runs.ending import Ending
from ldd.runs.verb import run_function

_SCRIPT = """_latentdd() {{
    local word=${{COMP_WORDS[COMP_CWORD]}} before=${{COMP_WORDS[COMP_CWORD-1]}} verb=${{COMP_WORDS[1]}} options
    if [ "$COMP_CWORD" = 1 ]; then
        COMPREPLY=($(compgen -W "{verbs}" -- "$word"))
        return
    fi
    case "$before" in
        -c|--config) COMPREPLY=($(compgen -W "{recipes}" -- "$word") $(compgen -f -- "$word")); return ;;
    esac
    [ "$verb" = prior ] && verb="prior-${{COMP_WORDS[2]}}"
    case "$verb" in
{cases}
    esac
    case "$word" in
        -*) COMPREPLY=($(compgen -W "$options" -- "$word")) ;;
        *) COMPREPLY=($(compgen -f -- "$word")) ;;
    esac
}}
complete -o filenames -F _latentdd latentdd
"""


def completion(shell: Literal["bash", "zsh"] = "bash") -> Ending:
    """Print a script that completes commands of latentdd: source <(latentdd completion).

    Args:
        shell: whose script it is; for zsh, source <(latentdd completion --shell zsh).
    """
    texts = {file.stem: file.read_text(encoding="utf-8") for file in _help().glob("*.txt")}
    options = {name: sorted({*re.findall(r"(?<![\w`-])--[\w.-]*\w", text)}) for name, text in texts.items()}
    script = _SCRIPT.format(
        verbs=" ".join(sorted({name if name[:6] != "prior-" else "prior" for name in options})),
        recipes=" ".join(shipped_names()),
        cases="\n".join(
            f'        {name}) options="{" ".join(found)}" ;;' for name, found in sorted(options.items())
        ),
    )
    print(("autoload -U +X bashcompinit && bashcompinit\n" if shell == "zsh" else "") + script, end="")
    print(
        f"# next: source <(latentdd completion --shell {shell})  # in this shell; in ~/.{shell}rc for every one"
    )
    return Ending()  # what is printed is sourced


def _help() -> Path:
    return Path(__file__).parent / "help"


def main(verb: str, arguments: Sequence[str]) -> Ending:
    """Run the verb."""
    return run_function(completion, verb, arguments, path=None)
