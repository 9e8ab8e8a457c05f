"""Tables that firmware would have left in memory."""
