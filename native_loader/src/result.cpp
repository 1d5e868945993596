#include "result.hpp"

#include <system_error>

namespace firstlight {

Error system_failure(ErrorCode code, const std::string& what, int system_error, const std::string& path) {
    const std::string words = std::error_code(system_error, std::generic_category()).message();
    return Error{code, what + ": " + words, system_error, path, std::nullopt};
}

}  // namespace firstlight
