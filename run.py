"""The front door: compose, parse, hand over."""

import hydra
from omegaconf import DictConfig

from upft import composition, door

composition.register()


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(cfg: DictConfig) -> None:
    """Run, or with plan=true show, one experiment."""
    with door.one_message():  # in here as well: Hydra announces an exception of a job in words of its own
        parsed = composition.parse(cfg)
        from upft import launcher  # after the configuration holds: it brings the stages

        launcher.one(parsed)


if __name__ == "__main__":
    with door.one_message():
        door.flag_first("-m", "--multirun")
        main()
