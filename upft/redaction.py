"""No secret on record: what a command line holds of keys, tokens and passwords is taken out before it is noted.

Floor 0. Goes by the names that values are given under, by forms that issuers of tokens use, and by user:password in a URL.
Forty hexadecimal digits are left alone: W&B's older keys look so, but so does every commit that a model is pinned by; a key
belongs in the environment (WANDB_API_KEY, HF_TOKEN), which is never noted.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

HIDDEN = "REDACTED"
"""In a value's place."""
NAMES = frozenset({"key", "apikey", "keys", "token", "secret", "secrets", "password", "passwd", "passphrase", "pwd", "pat",
                   "credential", "credentials", "auth", "authorization", "bearer"})
"""Words of a name whose value is hidden (`tokens`, a count here, is none of them)."""
ISSUED = re.compile(r"""(?<![A-Za-z0-9])(?:
    hf_[A-Za-z0-9]{8,}                                  # Hugging Face
    | wandb_v\d_[A-Za-z0-9_]{8,}                        # Weights & Biases
    | sk-[A-Za-z0-9_-]{16,}                             # OpenAI and others
    | gh[opsur]_[A-Za-z0-9]{16,} | github_pat_\w{16,}   # GitHub
    | glpat-[\w-]{16,}                                  # GitLab
    | xox[abprs]-[A-Za-z0-9-]{10,}                      # Slack
    | (?:AKIA|ASIA)[A-Z0-9]{16}                         # AWS
    | AIza[\w-]{30,}                                    # Google
    | eyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*                   # a JSON Web Token
    )""", re.VERBOSE)
LOGIN = re.compile(r"(?<=://)[^/\s@]+@")
"""user:password@ of a URL."""
GIVEN = re.compile(r"""(?P<name>[A-Za-z_][\w.-]*)(?P<sign>["']?\s*[=:]\s*)(?P<value>"[^"]*"|'[^']*'|[^\s,{}()\[\]"']+)""")
"""A name and its value, inside a word."""


def command(words: Sequence[str]) -> list[str]:
    """A command line without its secrets."""
    shown: list[str] = []
    follows = False
    for word in words:
        if follows and not word.startswith("-"):
            shown.append(HIDDEN)
            follows = False
            continue
        name, equals, value = word.partition("=")
        follows = word.startswith("--") and not equals and secret(name)
        shown.append(f"{name}={HIDDEN}" if equals and value and secret(name) else text(word))
    return shown


def text(given: str) -> str:
    """A text without what is recognised as a secret."""
    given = GIVEN.sub(lambda m: f"{m['name']}{m['sign']}{HIDDEN}" if secret(m["name"]) and "//" not in m["value"][:2]
                      else m[0], given)
    return LOGIN.sub(f"{HIDDEN}@", ISSUED.sub(HIDDEN, given))


def secret(name: str) -> bool:
    """Whether what has this name is to be hidden: hydra.job.env_set.WANDB_API_KEY, --hf-token, apiKey."""
    last = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name.rpartition(".")[2])
    return not NAMES.isdisjoint(re.split(r"[^a-z0-9]+", last.lower()))
