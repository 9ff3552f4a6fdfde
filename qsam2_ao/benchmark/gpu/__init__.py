"""All that is to be known of a GPU that can be had for half an hour: right results first, times after."""
