"""A denoiser whose tokens diffusers' context parallelism has spread over devices."""
