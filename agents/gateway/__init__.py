"""The gateway: HTTP in front of agents. `llmagentos gateway` runs it; needs `pip install 'llmagentos[gateway]'`.

It keeps nothing of its own: what clients send goes to inboxes, what agents say comes from `replies`, keys are in
`keys`. So any number of gateway processes run side by side, and a client that loses one goes on at another.
"""
