"""The napari plugin: panels whose every action is a command or a function of other rooms. The only room with Qt in it."""
