// The primitive layer's part for sm_90a: barriers that count bytes, boxes, asynchronous products.
#pragma once
#ifdef __CUDACC__
#include "cuda/primitives/ptx/hopper.h"
#else
#include "cuda/primitives/emulated/hopper.h"
#endif
