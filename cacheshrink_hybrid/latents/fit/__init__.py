"""From statistics to bases, ranks and bits: which part of keys and values is worth its bytes."""
