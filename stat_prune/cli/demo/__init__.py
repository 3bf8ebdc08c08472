"""The demo: prune a real sentence encoder on real text, and measure what is left of it."""

from stat_prune.cli.demo.course import run_demo
from stat_prune.cli.demo.demo_report import DemoReport

__all__ = ["DemoReport", "run_demo"]
