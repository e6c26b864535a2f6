"""`llmagentos demo`: three agents survey a folder of source code, one worker is killed, and nothing is lost."""

from llmagentos.cli.demo.command import register

__all__ = ["register"]
