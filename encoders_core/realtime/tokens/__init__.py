"""The token-gated pass of a ViT: only what has changed of a picture is computed, against a memory of each camera.

`passes` takes `lane`s (one for each camera) through the network, block by block. Between its products stand the gates
(`kernels`, whose plain twins are in `plain`), whose `limits` follow from the `importance` of rows; what they compare with is
in `cache` and `memory`. Products, attention and the reading of frames (`row_product`, `attention`, `patch_rows`) are written in
LLVM's words (`vector_code`, `product_code`, `function_code`).
"""
