#include "machine.h"
TABLE(tensor_ops) = {{NULL, NULL}};
