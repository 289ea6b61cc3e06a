// Lets the libraries run on Linux with a glibc before 2.32, as torch's own do: GCC's shared pointers ask
// __libc_single_threaded, which came with that, whether atomic counts are needed. Here they always are. For one source
// of each library.
#pragma once

#if defined(__linux__) && __has_include(<sys/single_threaded.h>)
#include <sys/single_threaded.h>
extern "C" {
__attribute__((visibility("hidden"))) char __libc_single_threaded = 0;
}
#endif
