"""What each program takes: one module per program, none of which imports torch.

A module has `parser()`; its docstring is what `--help` says. Where they are needed it also has
`parse(parser, argv)`, in place of `parser.parse_args`, and `faults(given)`: what is wrong with
arguments together, beyond what their types say of each (`cli.preflight`).
"""
