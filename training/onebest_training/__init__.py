"""Training: speech and its text go in, a checkpoint of a small streaming transducer comes out.

The stages, one file each:

- ``config``: a strict TOML file -> frozen dataclasses
- ``features``: lhotse cuts -> a store of log-mel features on disk (``onebest prepare``)
- ``vocabulary``: text -> a 500-piece BPE model
- ``whisper``: a Whisper encoder in CTranslate2 form -> the first weights of ours (``onebest convert-encoder``)
- ``encoder``, ``transducer``: the model
- ``lattice``, ``band``: the transducer loss, in full and on a band around a known path
- ``batches``, ``augment``: the store -> batches in a fixed order, augmented
- ``trainer``, ``checkpoint``: batches -> a trained checkpoint, resumable at any step (``onebest train``)
- ``decode``: a checkpoint -> text, for the error rate on dev while training
"""
