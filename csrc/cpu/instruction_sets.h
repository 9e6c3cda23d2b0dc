// Every file of csrc/cpu that ends in .cpp is compiled once for each instruction set, into a namespace of
// that name (setup.py passes EARLYBERT_ISA); the bindings call the best one that the processor has.
//
// To stay out of each other's way these files call no inline function or template with external linkage
// (nothing from the C++ library either): the linker keeps a single copy of those, and it may be one with
// instructions that the processor lacks. Helpers are `static`, scratch memory comes from the caller or malloc.
#pragma once

#if defined(__x86_64__)
#define EARLYBERT_FOR_EACH_ISA(DO) DO(baseline) DO(avx2) DO(avx512) DO(avx512_bf16)
#else
#define EARLYBERT_FOR_EACH_ISA(DO) DO(baseline)
#endif
