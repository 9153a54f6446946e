"""The server: speech recognition over websockets.

A client's messages come in, its text goes out. From the outside to the inside, one file each:

- ``commands.serve``, ``workers``: the command; processes that share a port, and the one that watches over
  them
- ``server``: one process: its port, how it starts and drains
- ``http``, ``access``: plain requests, who may connect
- ``connection``: a websocket and its session, backpressure both ways
- ``protocols``, ``messages``: what clients speak; ``protocol`` says what a protocol is
- ``session``, ``sessions``: a conversation, which outlives its connection; all of them
- ``job``, ``scheduler``: the audio that waits, and the threads that decode it in batches, in turn
- ``models``: the model at each latency
- ``limits``, ``metrics``, ``logs``: what one process takes on, what it measures, what it writes down
"""
