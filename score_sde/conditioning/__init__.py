"""What a network is told beside x and t: classes."""
