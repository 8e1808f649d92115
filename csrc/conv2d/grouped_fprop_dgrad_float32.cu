#include "conv2d/grouped_image.cuh"

template void fastcnn::grouped::launch_image<float>(const GroupedImageParams&, bool, const GroupedPlan&,
                                                    cudaStream_t);
