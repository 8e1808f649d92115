#include "conv2d/grouped_image.cuh"

template void fastcnn::grouped::launch_image<__half>(const GroupedImageParams&, bool, const GroupedPlan&,
                                                     cudaStream_t);
