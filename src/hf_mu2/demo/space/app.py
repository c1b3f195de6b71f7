"""The Space: `hf-mu2 demo` with the models that the variable `HF_MU2_MODELS` names."""

import os

# First: ZeroGPU wants to be imported before torch meets CUDA.
from hf_mu2.demo.gpu import model_device  # isort: skip
from hf_mu2.demo.app import serve
from hf_mu2.demo.desk import Desk
from hf_mu2.demo.niivue import install_niivue
from hf_mu2.reporting.inference import load_reader


def main() -> None:
    try:
        install_niivue()
    except RuntimeError as error:  # no npm here: the server draws the slices
        print(error)
    models: list[str | None] = [*os.environ.get("HF_MU2_MODELS", "").split()]
    serve(Desk([load_reader(model, model_device()) for model in models or [None]]))


if __name__ == "__main__":
    main()
