"""One module for each command of ``kesm``: parse, call one function, print.

The scientific stack takes seconds to import and ``kesm --help`` must not: every command imports what it needs when it
is called. These modules are the only ones that do so.
"""
