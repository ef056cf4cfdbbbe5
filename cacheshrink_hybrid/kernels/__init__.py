"""Operations on the pool: tensors in, tensors out.

Each has a reference in plain torch, which is its definition, beside a Triton kernel; those on rows
of latents also have functions that numba compiles for CPUs. The arena is a buffer of bytes that is
addressed through tables; compressed rows and states are read from it and written to it, and never
expanded in device memory.

The public function of an operation documents and checks its arguments, and hands them in the same
order to `<operation>_triton`, `<operation>_cpu` or `<operation>_reference`, so that the list stands
in all of them.
"""
