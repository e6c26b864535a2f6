"""`llmagentos demo`: three agents survey a folder of source code, one worker is killed, and nothing is lost."""
