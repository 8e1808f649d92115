#include "conv2d/generic.cuh"

template void fastcnn::generic::launch_wgrad<__nv_bfloat16>(const GenericParams&, const Conv2dPlan&,
                                                            cudaStream_t);
