"""From statistics to bases, ranks and codes: which part of a state is worth its bytes."""
