"""``fusion-pl --completion bash``, which prints a shell script that completes commands, options and values."""

from __future__ import annotations

from fusion_pl.cli.help import DESCRIPTIONS, project_classes, sections


def completion_script() -> str:
    """Return a bash script that completes commands, options, and the values of options with known choices."""
    cases: list[str] = []
    values: dict[str, str] = {}
    for subcommand in DESCRIPTIONS:
        groups = sections(subcommand, [], everything=True)
        options = [option for _, group in groups for option in group if "NAME" not in option.key]
        keys = {f"--{option.key}" for option in options} | {"--help", "--help-all"}
        keys |= set() if subcommand in {"predict", "explain", "evaluate", "serve", "export"} else {"--config"}
        cases.append(f"    {subcommand!r}' '*) options={' '.join(sorted(keys))!r} ;;")
        for option in options:
            if words := [str(choice) for choice in option.choices] or project_classes(option):
                values[option.key] = f"    --{option.key}) known={' '.join(words)!r} ;;"
    first_words = dict.fromkeys(subcommand.partition(" ")[0] for subcommand in DESCRIPTIONS)
    second_words = " ".join(words[1] for subcommand in DESCRIPTIONS if len(words := subcommand.split()) > 1)
    return SCRIPT.format(
        commands=" ".join(first_words),
        data_commands=second_words,
        cases="\n".join(cases),
        values="\n".join(values.values()),
    )


SCRIPT = """\
# Completion of fusion-pl for bash, and for zsh after: autoload -U bashcompinit && bashcompinit
_fusion_pl() {{
  local word="${{COMP_WORDS[COMP_CWORD]}}" before="${{COMP_WORDS[COMP_CWORD-1]}}" options="" known=""
  if [ "$COMP_CWORD" -eq 1 ]; then
    COMPREPLY=($(compgen -W '{commands} --help --version' -- "$word"))
    return
  fi
  if [ "$COMP_CWORD" -eq 2 ] && [ "${{COMP_WORDS[1]}}" = data ]; then
    COMPREPLY=($(compgen -W '{data_commands}' -- "$word"))
    return
  fi
  case "${{COMP_WORDS[1]}} ${{COMP_WORDS[2]}} " in
{cases}
  esac
  case "$before" in
{values}
  esac
  if [ -n "$known" ]; then
    COMPREPLY=($(compgen -W "$known" -- "$word"))
  elif [ "${{word#-}}" != "$word" ]; then
    COMPREPLY=($(compgen -W "$options" -- "$word"))
  else
    COMPREPLY=($(compgen -f -- "$word"))
  fi
}}
complete -o filenames -F _fusion_pl fusion-pl
"""
