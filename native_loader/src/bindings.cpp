#include <nanobind/nanobind.h>

NB_MODULE(_native, module) {
    module.doc() = "C++ core of native_loader.";
}
