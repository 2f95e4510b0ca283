"""The finished runs of a plan in a folder, and the processes that divide them between each other."""
