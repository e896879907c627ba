"""The list of packages; all other facts are in pyproject.toml.

configs/ is installed as score_sde.configs, so that `score-sde --config vp_fashion` finds it.
"""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["score_sde*"]), "score_sde.configs"],
    package_dir={"score_sde.configs": "configs"},
)
