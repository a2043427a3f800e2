"""The C++ CPU backend."""
def unavailable_reason():
    return "not built"
