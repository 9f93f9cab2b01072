// All kernels, as one translation unit: for a GPU compiled by nvcc (build.rs), for a processor by kernels/host.
#include "bench.cu"
#include "check.cu"
#include "msm.cu"
#include "ntt.cu"
#include "qap.cu"
