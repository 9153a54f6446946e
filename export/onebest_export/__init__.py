"""Export: a training checkpoint goes in, a model bundle that onebest and sherpa-onnx run comes out.

The stages, one file each:

- ``streaming``: the encoder over one chunk, laid out to run fast
- ``graphs``: the torch model as three ONNX graphs in sherpa-onnx's ``conformer`` contract
- ``quantize``: float32 graphs -> int8 ones, per channel
- ``verify``: ONNX against torch over many chunks with state; a graph that differs is not shipped
- ``bundle``: all files of a bundle with their card
"""
