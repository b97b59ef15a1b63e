"""Train a backdoor-free image classifier on data that you do not trust.

The method is MeCa (Pu, Chen, Zhou, Feng, Li, Hu, Ji, 2024, https://arxiv.org/abs/2405.12719). Importing this
package does nothing and needs nothing; the work is in `meca.stages` (files in, files out) and in the modules that
they call (tensors in, tensors out).
"""

__version__ = "0.1.0"
