// One pass of resizing along one axis, in the integer arithmetic of Pillow: 8-bit samples, weights in 1/2^22.
//
// One thread makes pixels of the target: position `i` along the axis, of lines `j` across it. Strides are in bytes, so
// that one function goes along rows and along columns, forwards and backwards, and reads planes as well as pixels.
//
// `taps` holds for each position of the axis a row of 2 + `width` numbers: the first sample that it is made of, how many
// samples, and their weights.
extern "C" __global__ void resample(const unsigned char *source, long long source_line, long long source_sample,
                                    long long source_channel, unsigned char *target, long long target_line,
                                    long long target_sample, const int *taps, int width, int lines, int count) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= count) {
        return;
    }
    const int *row = taps + (long long)i * (2 + width);
    for (int j = blockIdx.y * blockDim.y + threadIdx.y; j < lines; j += gridDim.y * blockDim.y) {
        const unsigned char *sample = source + j * source_line + row[0] * source_sample;
        int sums[3] = {1 << 21, 1 << 21, 1 << 21};
        for (int k = 0; k < row[1]; ++k, sample += source_sample) {
            const int weight = row[2 + k];
            for (int channel = 0; channel < 3; ++channel) {
                sums[channel] += weight * sample[channel * source_channel];
            }
        }
        for (int channel = 0; channel < 3; ++channel) {
            const int value = sums[channel] >> 22;
            target[j * target_line + i * target_sample + channel] = value < 0 ? 0 : value > 255 ? 255 : value;
        }
    }
}
