#include "instantiate.cuh"

template const codecllm::cuda::SourceKernels* codecllm::cuda::kernels_of_format<codecllm::Bf16>(
    const CodedView&);
