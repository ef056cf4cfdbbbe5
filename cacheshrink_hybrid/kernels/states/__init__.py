"""Operations on recurrent states."""
