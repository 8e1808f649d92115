#include "conv2d/grouped_wgrad.cuh"

template void fastcnn::grouped::launch_wgrad<float>(const GroupedWgradParams&, const GroupedPlan&,
                                                    cudaStream_t);
