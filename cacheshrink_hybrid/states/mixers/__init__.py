"""The recurrent mixers that take the place of a source's."""
