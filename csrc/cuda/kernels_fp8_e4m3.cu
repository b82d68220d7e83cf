#include "instantiate.cuh"

template const codecllm::cuda::SourceKernels* codecllm::cuda::kernels_of_format<codecllm::Fp8E4m3>(
    const CodedView&);
