"""What recurrent layers remember: one state per sequence, with fewer directions and in few bits."""
