"""onebest: streaming speech recognition on your own device.

Audio comes in as samples, text goes out as it is spoken. The stages, one file each:

- ``audio``: a file of any rate, channel count and format -> blocks of 16 kHz mono samples
- ``frontend``: samples -> 80-bin log-mel frames (the only front end; training and export import it)
- ``bundle``: a model's folder -> checked ONNX sessions, vocabulary, sizes
- ``search``: encoder frames -> tokens (greedy transducer search)
- ``recognizer``: ``Recognizer`` (shared, immutable) and ``Stream`` (one utterance)
"""

__version__ = "0.1.0"
