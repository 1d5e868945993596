#include "bindings.hpp"
#include "ordered_products.hpp"

namespace firstlight::bindings {
namespace {

const float* floats_at(std::uintptr_t address) { return reinterpret_cast<const float*>(address); }

void multiply(std::uintptr_t rows, std::uintptr_t weights, std::uintptr_t products, std::size_t count,
              std::size_t outputs, std::size_t inputs, std::size_t block) {
    if (!has_ordered_products() || count < 1 || count > kMostOrderedRows || block == 0 || rows == 0 || weights == 0 ||
        products == 0)
        raise(Error{ErrorCode::invalid_argument, "one to three rows, a block, and a processor with AVX2 and FMA", 0, "",
                    std::nullopt});
    const OrderedProduct product{floats_at(rows), floats_at(weights), reinterpret_cast<float*>(products),
                                 count,           outputs,            inputs,
                                 block};
    const nb::gil_scoped_release release;
    multiply_in_order(product);
}

}  // namespace

void bind_ordered_products(nb::module_& module) {
    module.def("has_ordered_products", &has_ordered_products,
               "Whether this processor has what `multiply_in_order` needs.");
    module.def("multiply_in_order", &multiply, nb::arg("rows"), nb::arg("weights"), nb::arg("products"), nb::kw_only(),
               nb::arg("count"), nb::arg("outputs"), nb::arg("inputs"), nb::arg("block"),
               "Products of up to three float32 rows (count, inputs) with weights (outputs, inputs), summed in order.\n\n"
               "Addresses of contiguous memory, which the caller holds: wrapping each would cost more than a small\n"
               "product. `block` inputs are summed on their own before they are added.\n\n"
               "Raises: InvalidInput.");
}

}  // namespace firstlight::bindings
